"""``python run.py --mode=pretrain …``; ``python run.py --help`` lists everything."""

from simclrv2_tf.cli import main

if __name__ == "__main__":
    main()
