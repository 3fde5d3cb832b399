# CPUs: docker build -t simclrv2 . && docker run --rm -v simclrv2-runs:/work/runs simclrv2
FROM python:3.11-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY requirements.txt constraints.txt ./
RUN pip install --constraint constraints.txt --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY simclrv2_tf simclrv2_tf
RUN pip install --no-deps .
RUN useradd --create-home --uid 1000 simclrv2 && install --directory --owner=simclrv2 /work /work/runs
USER 1000
WORKDIR /work
ENTRYPOINT ["simclrv2-tf"]
CMD ["--mode=semi_supervised", "--dataset=digits", "--model_dir=runs/digits"]
