FROM alpine:3.21 AS build
ADD https://ziglang.org/download/0.13.0/zig-linux-x86_64-0.13.0.tar.xz /tmp/
RUN tar -xf /tmp/zig-linux-x86_64-0.13.0.tar.xz -C /opt && ln -s /opt/zig-*/zig /usr/bin/zig
COPY src /src
RUN zig build-exe -O ReleaseSafe /src/main.zig -femit-bin=/main
FROM alpine:3.21
COPY --from=build /main /main
CMD /main
