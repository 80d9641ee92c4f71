FROM composer:2 AS vendor
COPY database/ database/
COPY composer.json composer.lock ./
RUN composer install --ignore-platform-reqs --no-interaction --no-scripts
FROM node:22 AS frontend
RUN mkdir -p /app/public
COPY package.json vite.config.js package-lock.json /app/
COPY resources/ /app/resources/
WORKDIR /app
RUN npm ci && npm run build
FROM php:8.4-fpm
COPY . /var/www/html
COPY --from=vendor /app/vendor/ /var/www/html/vendor/
COPY --from=frontend /app/public/build/ /var/www/html/public/build/
