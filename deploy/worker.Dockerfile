# A worker: torch, antdt and your script. The services need no more than Dockerfile has.
#
#   docker build -f deploy/worker.Dockerfile -t antdt-worker:0.1.0 .
FROM python:3.12-slim
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY streams streams
COPY trainer trainer
COPY tools tools
# As one step with what `antdt avoid-nodes` needs, and what the example does.
RUN pip install --no-cache-dir ".[streams,ps]" torch scikit-learn -c constraints.txt \
 && useradd --create-home --uid 1000 antdt && install -d -o antdt /data /checkpoints
USER 1000
WORKDIR /app
COPY examples/train.py train.py
ENTRYPOINT ["antdt"]
