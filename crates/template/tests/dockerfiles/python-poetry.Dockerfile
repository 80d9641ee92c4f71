ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim AS base
ENV POETRY_VERSION=2.1 POETRY_HOME="/opt/poetry" POETRY_NO_INTERACTION=1
FROM base AS builder
RUN pip install "poetry==$POETRY_VERSION"
WORKDIR /src
COPY pyproject.toml poetry.lock ./
RUN poetry config virtualenvs.in-project true && poetry install --only main --no-root
FROM base
COPY --from=builder /src/.venv /src/.venv
COPY app /src/app
WORKDIR /src
CMD .venv/bin/python -m app
