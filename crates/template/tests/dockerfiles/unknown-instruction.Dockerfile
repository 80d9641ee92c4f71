FROM debian:12
INSTALL vim
