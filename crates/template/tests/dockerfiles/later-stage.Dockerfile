FROM debian:12 AS first
COPY --from=second /x /y
FROM debian:12 AS second
