FROM debian:12
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends texlive-latex-extra latexmk make && rm -rf /var/lib/apt/lists/*
WORKDIR /work
ENTRYPOINT ["latexmk", "-pdf"]
