FROM golang:1.24-alpine AS build
RUN apk add --no-cache ca-certificates
COPY . /src
RUN cd /src && CGO_ENABLED=0 go build -o /app .
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /app /app
ENTRYPOINT ["/app"]
