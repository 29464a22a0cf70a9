"""What is said, in rendered manifests, above fields whose effect is not obvious; see `cluster.render.yaml`."""

COMMENTS = {
    "recipe.yaml": "The recipe as it was when this was rendered: a run's result is pinned to it.",
    "immutable": "For a recipe that has changed, delete the job and its recipe first: the next try of a job would "
    "train what it finds.",
    "kueue.x-k8s.io/elastic-job": "Lets the cluster grow and shrink under Kueue; needs Kueue's feature gate "
    "ElasticJobsViaWorkloadSlices.",
    "entrypoint": "Goes on with the run of this name where it stopped. --patience: a job that is tried again may find "
    "the attempt before it still in its pod's grace; what is alive after that long is somebody else's.",
    "submissionMode": "The operator submits the job and polls its status, and submits it again to a new head. "
    "In K8sJobMode the job would hang on a pod that follows its log, and logs end early.",
    "backoffLimit": "Tries after the first, each in a new cluster. Attempts may overlap (kuberay#5211): the fence in "
    "the object store lets one of them write.",
    "ttlSecondsAfterFinished": "Seconds that the cluster stays after the job's end, for its logs to be read.",
    "activeDeadlineSeconds": "A job that has passed it is stopped, and not tried again.",
    "suspend": "Kueue starts it when there is quota.",
    "rayVersion": "That of the image; the operator goes by it.",
    "authOptions": "Only who has the token may use the cluster. The operator makes it and keeps it in a secret of the "
    "cluster's name; without it, whoever reaches port 8265 runs what they like.",
    "enableInTreeAutoscaling": "Pods come when Ray has work for them, and go when they are idle.",
    "upscalingMode": "As many pods at once as are asked for.",
    "autoscalerOptions.env": "A pod that finds no machine is given up when nobody has wanted it for so long; Ray would "
    "wait for it forever.",
    "autoscalerOptions.resources": "Twice the memory that the operator would give it: it loads all of Ray.",
    "rayStartParams.num-cpus": "No work on the head: the driver and its actors run here, and nothing to starve them.",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "Moving the head, to pack nodes better, is losing it.",
    "terminationGracePeriodSeconds": "Above the node's drain (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S), in which Manta "
    "saves; what is left then is killed.",
    "requiredDuringSchedulingIgnoredDuringExecution": "Off nodes that may be reclaimed, as Karpenter, EKS, GKE and AKS "
    "label them; changes nothing elsewhere.",
    "preferredDuringSchedulingIgnoredDuringExecution": "Onto nodes that may be reclaimed, where there are any. To "
    "insist, name their label in the group's node_selector.",
    "runAsUser": "The user `ray` of Ray's images.",
    "containers.resources": "Requests are the limits: a pod has what it counts on, and is evicted last.",
    "readinessProbe": "Ray's own word on whether this node is well.",
    "livenessProbe": "Patient: a node that computes on all its cores may answer late. The head notices one that is "
    "gone, in seconds (RAY_health_check_*).",
    "emptyDir": "Counts as the pod's memory: Ray's object store (30 %) and Manta's snapshots of the state.",
    "minReplicas": "Pods that are there without work, too.",
    "workerGroupSpecs.resources": "What Ray counts on a node: its scheduler and its autoscaler both read it here.",
    "workerGroupSpecs.labels": "Ray's labels of its nodes, for label selectors; also labels of the pods.",
    "automountServiceAccountToken": "Workers do not talk to Kubernetes. An identity for the bucket has a token of its "
    "own.",
    "tolerations": "Nodes with GPUs, and nodes that may be reclaimed, are often tainted to keep all else off.",
}
"""By the dotted end of a field's path."""
