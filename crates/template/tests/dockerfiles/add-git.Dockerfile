FROM debian:12
ADD https://github.com/user/repo.git#main /src
