# The program, the libraries that it runs with, and a configuration to start from.
# Takes the place of registry:2 and registry:3: same volume, same port, configuration files in the same places.

FROM node:24-slim AS build
WORKDIR /build
COPY package.json package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY tsconfig.json proxy.yml ./
COPY src src
RUN npm run build
# The file that `npm start` uses, with the data where registry has it. A variable for this would win over the
# rootdirectory in a file that is mounted.
RUN sed 's|rootdirectory: ./data$|rootdirectory: /var/lib/registry|' proxy.yml > config.yml \
 && grep -q 'rootdirectory: /var/lib/registry$' config.yml

FROM node:24-slim
ENV NODE_ENV=production
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --no-audit --no-fund && npm cache clean --force
COPY --from=build /build/dist dist

# registry:3 reads /etc/distribution/config.yml, registry:2 /etc/docker/registry/config.yml. The second leads to
# the first, so a file (or a directory) mounted at either place is the one that is read.
COPY --from=build /build/config.yml /etc/distribution/config.yml
RUN mkdir -p /etc/docker/registry /var/lib/registry \
 && ln -s /etc/distribution/config.yml /etc/docker/registry/config.yml \
 && chown node:node /var/lib/registry \
 && chmod +x dist/main.js && ln -s /app/dist/main.js /usr/local/bin/layover
ENV REGISTRY_CONFIGURATION_PATH=/etc/docker/registry/config.yml

USER node
VOLUME ["/var/lib/registry"]
EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["node", "/app/dist/main.js", "health"]
# The flags and the variable keep memory flat, as in `npm start`.
ENV MALLOC_ARENA_MAX=2
ENTRYPOINT ["node", "--expose-gc", "--max-semi-space-size=4", "--heap-growing-percent=30", "--v8-pool-size=2", "/app/dist/main.js"]
CMD ["serve"]
