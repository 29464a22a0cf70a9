# Manta on Ray's official image, for KubeRay and for `ray up`:
#
#   docker build -t registry.example.com/manta:0.1.0 .
#   docker push registry.example.com/manta:0.1.0
#
# Ray's images are tagged {Ray}-{Python}[-{platform}]. Without a platform they are plain Ubuntu, and do for GPUs too:
# torch's wheel has the CUDA libraries with it, and the driver comes from the node. `--build-arg PLATFORM=-gpu`, or a
# version as -cu128, has the whole toolkit, for code that is compiled against it; some gigabytes more.
#
# Nothing secret is in here, and none is needed to build it: .dockerignore lets in only what is copied below.

# The Ray that pyproject.toml pins, and the Python that constraints.txt is for.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py311
ARG PLATFORM=
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}${PLATFORM}

# Another index for torch's wheels, such as one of those without CUDA for clusters without GPUs.
ARG TORCH_INDEX=
# Optional parts of Manta: text (cleaning), gs (shards in gs://).
ARG EXTRAS=text,gs

# By number, as Kubernetes can tell from it that this is not root: the user `ray` of Ray's images.
USER 1000:100
# Made by this user: WORKDIR alone makes a folder as root in some builders.
RUN mkdir -p /home/ray/manta
WORKDIR /home/ray/manta

# torch first and by itself: by far the largest layer, and the one that changes least.
COPY --chown=1000:100 constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch==2.13.0

COPY --chown=1000:100 pyproject.toml README.md LICENSE manta_start.py ./
COPY --chown=1000:100 cluster cluster
COPY --chown=1000:100 data data
COPY --chown=1000:100 model model
COPY --chown=1000:100 orchestrator orchestrator
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" && manta --version && ray --version

WORKDIR /home/ray
