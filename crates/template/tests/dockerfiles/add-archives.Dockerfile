FROM debian:12
ADD rootfs.tar.xz /
ADD vendor.tgz plain.txt /opt/
ADD https://example.com/tool?version=1 /usr/local/bin/tool
RUN chmod +x /usr/local/bin/tool
