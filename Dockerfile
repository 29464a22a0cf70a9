# Manta on Ray's official image, for KubeRay and for `ray up`:
#
#   docker build -t registry.example.com/manta:0.2.0 .
#   docker push registry.example.com/manta:0.2.0
#
# Ray's images are tagged {Ray}-{Python}[-{platform}]. Without a platform they are plain Ubuntu, and work for GPUs too:
# torch's wheel includes the CUDA libraries, and the driver comes from the node. `--build-arg PLATFORM=-gpu`, or a
# version such as -cu128, includes the whole toolkit, for code that is compiled against it; it is some gigabytes larger.
#
# The image contains no secrets, and building it needs none: .dockerignore admits only the files that are copied below.

# The version of Ray that pyproject.toml pins, and the version of Python that constraints.txt is for.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py311
ARG PLATFORM=
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}${PLATFORM}

# Another index for torch's wheels, such as the one without CUDA for clusters without GPUs.
ARG TORCH_INDEX=
# Optional parts of Manta: text (cleaning), gs (shards in gs://).
ARG EXTRAS=text,gs

# The user `ray` of Ray's images, by number: from a name Kubernetes could not tell that it is not root.
USER 1000:100
# Created by this user: with some builders WORKDIR alone creates a folder that belongs to root.
RUN mkdir -p /home/ray/manta
WORKDIR /home/ray/manta

# torch is a layer of its own and comes first: it is by far the largest, and changes least.
COPY --chown=1000:100 constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch==2.13.0

COPY --chown=1000:100 pyproject.toml README.md LICENSE ./
COPY --chown=1000:100 cluster cluster
COPY --chown=1000:100 data data
COPY --chown=1000:100 manta_start manta_start
COPY --chown=1000:100 model model
COPY --chown=1000:100 orchestrator orchestrator
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" && manta --version && ray --version

WORKDIR /home/ray
