FROM oven/bun:1 as install
WORKDIR /temp/prod
COPY package.json bun.lock ./
RUN bun install --frozen-lockfile --production
FROM oven/bun:1
COPY --from=install /temp/prod/node_modules node_modules
COPY index.ts .
ENTRYPOINT [ "bun", "run", "index.ts" ]
