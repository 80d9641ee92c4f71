FROM golang:1.24
RUN --mount=type=bind,target=. go build -o /bin/app .
