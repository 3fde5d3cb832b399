"""``python -m simclrv2_tf``: the command line."""

from simclrv2_tf.cli import main

if __name__ == "__main__":
    main()
