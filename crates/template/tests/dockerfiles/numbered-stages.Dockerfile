FROM alpine
RUN echo a > /a
FROM alpine
COPY --from=0 /a /b
FROM debian:12
COPY --from=1 /b /c
