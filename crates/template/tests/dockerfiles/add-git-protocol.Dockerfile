FROM debian:12
ADD git@github.com:user/repo.git /src
