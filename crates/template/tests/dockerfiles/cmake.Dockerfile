FROM gcc:14 AS build
RUN apt-get update && apt-get install -y cmake ninja-build
COPY . /src
RUN cmake -G Ninja -S /src -B /build -DCMAKE_BUILD_TYPE=Release && cmake --build /build --target install
FROM debian:trixie-slim
COPY --link --from=build /usr/local/ /usr/local/
RUN ldconfig
