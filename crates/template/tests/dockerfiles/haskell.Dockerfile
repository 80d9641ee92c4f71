FROM haskell:9.8 AS build
WORKDIR /opt/app
COPY ./app.cabal /opt/app/
RUN cabal update && cabal build --only-dependencies -j4
COPY . /opt/app
RUN cabal install --install-method=copy --installdir=/out
FROM debian:bookworm-slim
COPY --from=build /out/* /usr/local/bin/
