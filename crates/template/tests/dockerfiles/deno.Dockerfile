FROM denoland/deno:2.1.0
EXPOSE 1993
WORKDIR /app
USER deno
COPY deps.ts .
RUN deno install --entrypoint deps.ts
ADD . .
CMD ["run", "--allow-net", "main.ts"]
