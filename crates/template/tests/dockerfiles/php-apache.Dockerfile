FROM php:8.4-apache
RUN apt-get update \
 && apt-get install -y libpng-dev libzip-dev \
 && docker-php-ext-install gd zip pdo_mysql \
 && a2enmod rewrite
COPY --from=composer:2 /usr/bin/composer /usr/bin/composer
COPY . /var/www/html/
RUN chown -R www-data:www-data /var/www/html
VOLUME ["/var/www/html/uploads"]
