# The course in JupyterLab, served by a user without privileges.
#
#     docker build -t aueditnet .
#     docker run --rm -p 127.0.0.1:8888:8888 aueditnet
#
# The log shows the address with Jupyter's token. Inside the container JupyterLab listens on all addresses, because Docker
# forwards from outside; `-p 127.0.0.1:...` keeps it on your machine, and the token stays necessary.
FROM python:3.11-slim

# The folder is made here, because some builders let WORKDIR make it for root.
RUN useradd --create-home reader && install -d -o reader /home/reader/aueditnet
USER reader
WORKDIR /home/reader/aueditnet
ENV PATH=/home/reader/venv/bin:$PATH

# The CPU build of PyTorch; for a GPU: docker build --build-arg TORCH=cu130, and docker run --gpus all
ARG TORCH=cpu
COPY --chown=reader . .
RUN python -m venv /home/reader/venv && pip install --no-cache-dir uv
RUN UV_TORCH_BACKEND=$TORCH uv pip install --no-cache -c .ci/constraints.txt -e '.[lab,heads,photo]'

EXPOSE 8888
HEALTHCHECK --start-period=30s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8888/api', timeout=3)"]
WORKDIR /home/reader/aueditnet/nbs
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "00_tour.ipynb"]
