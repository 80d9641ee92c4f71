FROM nginx:stable
ENV UPSTREAM=http://127.0.0.1:9000
COPY templates/*.template /etc/nginx/templates/
RUN rm /etc/nginx/conf.d/default.conf; ln -sf /dev/stdout /var/log/nginx/access.log
