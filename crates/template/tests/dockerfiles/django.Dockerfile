# syntax=docker/dockerfile:1.7
FROM python:3.12-alpine
LABEL org.opencontainers.image.title="shop" org.opencontainers.image.licenses=MIT
RUN addgroup -S app && adduser -S app -G app
WORKDIR /home/app
COPY --chown=app:app . .
USER app
HEALTHCHECK --interval=30s --timeout=3s CMD wget -qO- http://localhost:8000/health || exit 1
CMD ["sh", "-c", "python manage.py migrate && python manage.py runserver 0.0.0.0:8000"]
