# The GPU worker. The package index's torch brings its own CUDA libraries; the host needs only the driver and NVIDIA's
# container toolkit. For a much smaller image without CUDA build with
#   --build-arg PIP_EXTRA_INDEX_URL=(the index with PyTorch's CPU builds)
FROM python:3.12-slim-trixie AS build
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/erase
# Dependencies are a layer of their own, so that a change of our code does not download torch again.
COPY constraints.txt pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt \
    && pip --python /opt/erase install -r requirements.txt -c constraints.txt
COPY README.md LICENSE ./
COPY erase erase
COPY worker worker
COPY service service
RUN pip --python /opt/erase install --no-deps .

FROM python:3.12-slim-trixie
# /models is created here, so that a new volume mounted on it belongs to the user of the worker.
RUN pip uninstall --yes --quiet --root-user-action=ignore pip \
    && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin erase \
    && install --directory --owner=erase --group=erase /models
COPY --from=build /opt/erase /opt/erase
ENV PATH=/opt/erase/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HOME=/models HF_HUB_DISABLE_TELEMETRY=1
USER 10001:10001
VOLUME /models
EXPOSE 9101
# It answers from its first second on, also while a model is downloaded and loaded.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('ERASE_WORKER_METRICS_PORT', '9101')}/metrics\", timeout=2)"]
CMD ["erase-serve", "worker"]
