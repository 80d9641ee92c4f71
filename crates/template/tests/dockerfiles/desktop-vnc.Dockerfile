FROM debian:12
ENV DISPLAY=:1 RESOLUTION="1280x800x24"
RUN apt-get update && apt-get install -y xvfb x11vnc fluxbox novnc supervisor && apt-get clean
COPY <<EOF /etc/supervisor/conf.d/desktop.conf
[program:xvfb]
command=Xvfb :1 -screen 0 %(ENV_RESOLUTION)s
[program:vnc]
command=x11vnc -display :1 -forever
EOF
CMD ["supervisord", "-n"]
