# The HTTP service: no torch, no transformers, no compiler, no pip, no root.
FROM python:3.12-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/erase
COPY constraints.txt deploy/service-requirements.txt ./
RUN pip --python /opt/erase install -r service-requirements.txt -c constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY erase erase
COPY worker worker
COPY service service
RUN pip --python /opt/erase install --no-deps .

FROM python:3.12-slim-trixie
RUN pip uninstall --yes --quiet --root-user-action=ignore pip \
    && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin erase
COPY --from=build /opt/erase /opt/erase
ENV PATH=/opt/erase/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('ERASE_PORT', '8000')}/healthz\", timeout=2)"]
CMD ["erase-serve", "service"]
