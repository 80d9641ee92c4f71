FROM mcr.microsoft.com/playwright:v1.50.0-noble
WORKDIR /e2e
COPY package.json package-lock.json ./
RUN npm ci
RUN npx playwright install --with-deps chromium
COPY tests tests
CMD ["npx", "playwright", "test"]
