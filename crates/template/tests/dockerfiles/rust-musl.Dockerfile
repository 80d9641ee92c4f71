ARG TARGET=x86_64-unknown-linux-musl
FROM rust:1.85-alpine AS build
ARG TARGET
RUN rustup target add $TARGET
WORKDIR /build
COPY Cargo.* ./
COPY src src
RUN cargo build --release --target ${TARGET} \
    && cp target/${TARGET}/release/tool /tool
FROM alpine:3.21
COPY --from=build --chmod=755 /tool /usr/bin/tool
