FROM debian:12
RUN <<FIRST cat > /one && <<SECOND cat > /two
first
FIRST
second
SECOND
COPY <<robots.txt <<humans.txt /usr/share/www/
User-agent: *
robots.txt
People
humans.txt
