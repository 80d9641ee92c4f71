FROM node:22
WORKDIR /app
RUN --mount=type=secret,id=npmrc,target=/root/.npmrc npm ci
