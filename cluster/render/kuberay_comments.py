"""Comments above fields of rendered KubeRay manifests whose effect is not obvious; see `cluster.render.yaml`."""

COMMENTS = {
    "recipe.yaml": "The recipe at the time of rendering: a run's result depends on it.",
    "immutable": "To change the recipe, delete the job and this object first: a retried job would train the changed "
    "recipe.",
    "kueue.x-k8s.io/elastic-job": "Lets the cluster grow and shrink under Kueue; needs Kueue's feature gate "
    "ElasticJobsViaWorkloadSlices.",
    "entrypoint": "Continues the run of this name where it stopped. --patience: when a job is retried, the previous "
    "attempt may still be in its pod's grace period; an attempt that lives longer belongs to another job.",
    "submissionMode": "The operator submits the job and polls its status, and submits it again to a new head. "
    "In K8sJobMode the job would depend on a pod that follows its log, and logs end early.",
    "backoffLimit": "Retries, each in a new cluster. Attempts may overlap (kuberay#5211): the fence in the object "
    "store lets one of them write.",
    "ttlSecondsAfterFinished": "Seconds that the cluster stays after the job's end, so that its logs can be read.",
    "activeDeadlineSeconds": "A job that exceeds it is stopped, and not retried.",
    "suspend": "Kueue starts the job when there is quota.",
    "rayVersion": "Version of Ray in the image; the operator depends on it.",
    "authOptions": "Only clients with the token may use the cluster. The operator creates it and keeps it in a secret "
    "with the cluster's name; without it, anyone who reaches port 8265 can run code.",
    "enableInTreeAutoscaling": "Pods are created when Ray has work for them, and deleted when they are idle.",
    "upscalingMode": "Creates all requested pods at once.",
    "autoscalerOptions.env": "A pending pod is given up when no work has needed it for this long; Ray would wait "
    "for it forever.",
    "autoscalerOptions.resources": "Twice the memory that the operator would give it: it loads all of Ray.",
    "rayStartParams.num-cpus": "No work on the head: only the driver and its actors run here, so that nothing starves "
    "them.",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "To move the head, for a better packing of nodes, is to lose it.",
    "terminationGracePeriodSeconds": "Longer than the node's drain (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S), in which "
    "Manta saves; processes that remain are killed.",
    "requiredDuringSchedulingIgnoredDuringExecution": "Avoids nodes that may be reclaimed, as labelled by Karpenter, "
    "EKS, GKE and AKS; no effect elsewhere.",
    "preferredDuringSchedulingIgnoredDuringExecution": "Prefers nodes that may be reclaimed, if there are any. To "
    "require them, set their label in the group's node_selector.",
    "runAsUser": "The user `ray` of Ray's images.",
    "containers.resources": "Requests equal limits: they reserve all that the pod uses, and it is evicted last.",
    "readinessProbe": "Ray's own health check of this node.",
    "livenessProbe": "Patient: a node that computes on all its cores may answer late. The head notices a lost node "
    "within seconds (RAY_health_check_*).",
    "emptyDir": "Part of the pod's memory: Ray's object store (30 %) and Manta's snapshots of the state.",
    "minReplicas": "Pods that exist even without work.",
    "workerGroupSpecs.resources": "Ray's logical resources of a node, read by its scheduler and its autoscaler.",
    "workerGroupSpecs.labels": "Ray's labels of its nodes, for label selectors; also labels of the pods.",
    "automountServiceAccountToken": "Workers do not use the Kubernetes API. An identity for the bucket has its own "
    "token.",
    "tolerations": "Nodes with GPUs, and nodes that may be reclaimed, often have taints that exclude other pods.",
}
"""By the dotted end of a field's path."""
