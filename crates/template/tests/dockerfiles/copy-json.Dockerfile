FROM debian:12
COPY ["file with spaces.txt", "other file.txt", "/target dir/"]
COPY --chmod=u=rwX,go=rX ["scripts", "/opt/scripts"]
