FROM swift:6.0-noble AS build
WORKDIR /staging
COPY Package.* ./
RUN swift package resolve $([ -f ./Package.resolved ] && echo "--force-resolved-versions" || true)
COPY . .
RUN swift build -c release --static-swift-stdlib
FROM ubuntu:24.04
COPY --from=build --chown=1000:1000 /staging/.build/release/App /app/
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["./App"]
CMD ["serve", "--env", "production", "--hostname", "0.0.0.0", "--port", "8080"]
