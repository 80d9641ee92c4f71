FROM debian:12
ENV A="open
