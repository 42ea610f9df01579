{{/*
The Deployment of one service, which may do nothing but its work.
celeryscope.deployment (dict "root" $ "component" "monitor" "values" .Values.monitor "env" "…" "live" "/-/healthy" "ready" "/-/ready")
*/}}
{{- define "celeryscope.deployment" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $name := printf "%s-%s" (include "celeryscope.fullname" $root) .component -}}
{{- /* Flower watches one broker, and would not start with a file that names several. */ -}}
{{- $file := ternary "" $root.Values.config (eq .component "flower") -}}
{{- $web := and $root.Values.webConfig.existingSecret (ne .component "flower") -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "celeryscope.labels" . | nindent 4 }}
spec:
  replicas: {{ if hasKey $values "replicas" }}{{ int $values.replicas }}{{ else }}1{{ end }}
  # Two processes cannot share a state directory, so the old one goes first where there is a volume.
  strategy: { type: {{ ternary "Recreate" "RollingUpdate" $values.persistence.enabled }} }
  selector:
    matchLabels: {{- include "celeryscope.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "celeryscope.labels" . | nindent 8 }}
      annotations:
        # A change of what this service reads starts new pods.
        checksum/config: {{ $file | sha256sum }}
        checksum/secrets: {{ list $root.Values.broker $values.slack $values.store $values.auth | toJson | sha256sum }}
        {{- with $values.podAnnotations }}{{ toYaml . | nindent 8 }}{{ end }}
    spec:
      automountServiceAccountToken: false
      {{- with $root.Values.serviceAccount.name }}
      serviceAccountName: {{ . }}
      {{- end }}
      # A Service called celeryscope or flower would else put CELERYSCOPE_PORT or FLOWER_PORT into our environment.
      enableServiceLinks: false
      terminationGracePeriodSeconds: 30
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: { type: RuntimeDefault }
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "celeryscope.image" . | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          # Said in full, so that it also starts in an image of yours.
          command: [celeryscope, {{ .component }}]
          {{- with $values.args }}
          args: {{- toYaml . | nindent 12 }}
          {{- end }}
          env:
            - { name: MODE, value: {{ .component }} } # for the image's own health check
            - { name: CELERYSCOPE_{{ ternary "FLOWER_LISTEN" "LISTEN" (eq .component "flower") }}, value: ":{{ .port }}" }
            - { name: CELERYSCOPE_STATE_DIR, value: /var/lib/celeryscope }
            - name: CELERY_BROKER_URL
              valueFrom:
                secretKeyRef: { name: {{ include "celeryscope.brokerSecret" $root }}, key: {{ $root.Values.broker.key }} }
            {{- with $file }}
            - { name: CELERYSCOPE_CONFIG, value: /etc/celeryscope/celeryscope.toml }
            {{- end }}
            {{- if $web }}
            - { name: CELERYSCOPE_WEB_CONFIG_FILE, value: /etc/celeryscope-web/web.yml }
            {{- end }}
            {{- with .env }}{{ . | trim | nindent 12 }}{{ end }}
            {{- with include "celeryscope.settings" $values.settings }}{{ . | trim | nindent 12 }}{{ end }}
            {{- with $values.extraEnv }}{{ toYaml . | nindent 12 }}{{ end }}
          ports:
            - { name: http, containerPort: {{ .port }}, protocol: TCP }
          {{- range $probe, $path := dict "startupProbe" .live "livenessProbe" .live "readinessProbe" .ready }}
          {{ $probe }}:
            {{- if and $web (ne $probe "readinessProbe") }}
            # With a password or TLS the image's own check is asked, which needs neither.
            exec: { command: [python, /opt/celeryscope/healthcheck.py] }
            {{- else if $web }}
            tcpSocket: { port: http }
            {{- else }}
            httpGet: { path: {{ $path | quote }}, port: http }
            {{- end }}
            timeoutSeconds: {{ ternary 10 5 (not (empty $web)) }}
            periodSeconds: {{ ternary 2 15 (eq $probe "startupProbe") }}
            failureThreshold: {{ ternary 60 4 (eq $probe "startupProbe") }}
          {{- end }}
          resources: {{- toYaml $values.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            runAsNonRoot: true
            capabilities: { drop: [ALL] }
          volumeMounts:
            - { name: state, mountPath: /var/lib/celeryscope }
            - { name: tmp, mountPath: /tmp }
            {{- if $file }}
            - { name: config, mountPath: /etc/celeryscope, readOnly: true }
            {{- end }}
            {{- if $web }}
            - { name: web, mountPath: /etc/celeryscope-web, readOnly: true }
            {{- end }}
      volumes:
        - name: state
          {{- if $values.persistence.enabled }}
          persistentVolumeClaim: { claimName: {{ $values.persistence.existingClaim | default $name }} }
          {{- else }}
          emptyDir: { sizeLimit: {{ $values.persistence.size }} }
          {{- end }}
        - { name: tmp, emptyDir: { medium: Memory, sizeLimit: 64Mi } }
        {{- if $file }}
        - { name: config, configMap: { name: {{ include "celeryscope.fullname" $root }}-config } }
        {{- end }}
        {{- if $web }}
        - { name: web, secret: { secretName: {{ $root.Values.webConfig.existingSecret }}, defaultMode: 0440 } }
        {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "celeryscope.selector" . | nindent 14 }}
{{- end -}}

{{/* What belongs to a Deployment: its Service, its volume and its disruption budget. */}}
{{- define "celeryscope.company" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $name := printf "%s-%s" (include "celeryscope.fullname" $root) .component -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "celeryscope.labels" . | nindent 4 }}
  {{- with $values.service.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $values.service.type }}
  {{- if ne .component "flower" }}
  # A monitor whose broker is away is not ready, and just then its page must be read.
  publishNotReadyAddresses: true
  {{- end }}
  selector: {{- include "celeryscope.selector" . | nindent 4 }}
  ports:
    - { name: http, port: {{ $values.service.port }}, targetPort: http, protocol: TCP }
{{- if and $values.persistence.enabled (not $values.persistence.existingClaim) }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "celeryscope.labels" . | nindent 4 }}
spec:
  accessModes: [ReadWriteOnce]
  {{- with $values.persistence.storageClass }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources: { requests: { storage: {{ $values.persistence.size }} } }
{{- end }}
{{- if $root.Values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "celeryscope.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ $root.Values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels: {{- include "celeryscope.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
