FROM python:3.12 AS wheels
WORKDIR /wheels
COPY requirements.txt /tmp/
RUN pip wheel --wheel-dir=/wheels -r /tmp/requirements.txt
FROM python:3.12-slim
COPY --from=wheels /wheels /wheels
RUN pip install --no-index --find-links=/wheels /wheels/*.whl && rm -rf /wheels
USER nobody
ENTRYPOINT ["python", "-m", "service"]
