FROM ruby:3.4
WORKDIR /app
ADD Gemfile* /app/
RUN bundle install -j4
ADD . /app
CMD bundle exec rackup --host 0.0.0.0 -p 9292
