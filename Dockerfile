# syntax=docker/dockerfile:1.7
# `base` has what the project needs of a system; the dev container uses it. `project` is a clone that is set up.
FROM python:3.11.13-slim-bookworm AS base
# The packages have no version, because Debian keeps only the newest one of a release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl git make \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory '*' \
    && useradd --create-home --uid 1000 vae \
    && install --directory --owner=vae /home/vae/files
USER 1000
WORKDIR /home/vae

FROM base AS project
# A clone has only what is committed: no secret, no data and no environment of the host.
RUN --mount=type=bind,target=/context git clone --quiet /context project && git -C project remote remove origin
WORKDIR /home/vae/project
RUN --mount=type=cache,target=/home/vae/.cache,uid=1000 make setup .venv/scale TORCH=cpu
ENV PATH=/home/vae/project/.venv/bin:$PATH MODEL=vae-mnist
EXPOSE 5000 5001
CMD ["bash", "-c", "make run && exec mlflow models serve -m models:/$MODEL@champion --env-manager local -h 0.0.0.0 -p 5001"]
