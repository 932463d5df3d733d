# One image for every role; docker-compose.yml says which command each runs.
FROM node:24-slim AS frontend
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --no-audit --no-fund

FROM python:3.11-slim
WORKDIR /app
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 BUCLE_HOME=/data/home
# g++ builds training/*.cpp for the very processor it runs on; without it training works, more slowly.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md ./
COPY platform ./platform
COPY labeling ./labeling
COPY training ./training
COPY workers ./workers
RUN pip install -e .
COPY . .
COPY --from=frontend /app/node_modules ./node_modules
RUN python scripts/compile_messages.py \
 && useradd --create-home bucle && mkdir -p /data/home /data/artifacts && chown -R bucle /data
USER bucle
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "config.asgi:application", "--host", "0.0.0.0", "--port", "8000"]
