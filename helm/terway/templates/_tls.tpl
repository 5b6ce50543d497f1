{{/* Volumes with a certificate. Takes (list root secret): the Secret is used unless the control plane issues. */}}
{{- define "terway.tlsVolumes" -}}
{{- $root := index . 0 -}}
{{- if include "terway.issued" $root -}}
- name: tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{ include "terway.identityVolumes" $root }}
{{- else -}}
- name: tls
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
{{- end -}}
{{- end }}

{{/* Volumes by which a pod asks for a certificate: who it is, and whom it trusts. The trust is written by the control
     plane at its first start; until then kubelet waits. */}}
{{- define "terway.identityVolumes" -}}
- name: identity
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ include "terway.audience" . }}
          expirationSeconds: 3600
- name: trust
  configMap:
    name: {{ include "terway.name" . }}-trust
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}

{{- define "terway.tlsMount" -}}
- name: tls
  mountPath: /etc/terway/tls
  readOnly: true
{{- end }}

{{/* The container that fetches and renews the certificate. It starts before the others and stays; they read the files
     again when they change. Takes (list root is-node). */}}
{{- define "terway.certificateContainer" -}}
{{- $root := index . 0 -}}
- name: certificate
  image: {{ include "terway.image" (list $root "terwayctl" $root.Values.node.terwayctlImage) }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  restartPolicy: Always
  args:
    - ca
    - keep
    - --controlplane={{ include "terway.serviceHost" (list $root "controlplane") }}:7501
    - --token=/var/run/secrets/terway/identity/token
    - --trust=/etc/terway/trust/ca.crt
    - --out=/etc/terway/tls
    {{- if index . 1 }}
    # The instance's own word, besides the token: a stolen token is of no use elsewhere.
    - --instance-proof
    {{- end }}
  startupProbe:
    exec: {command: [/terwayctl, ca, check, --dir=/etc/terway/tls]}
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 600
  resources:
    requests: {cpu: 5m, memory: 16Mi}
    limits: {memory: 64Mi}
  {{- include "terway.containerSecurity" (list) | nindent 2 }}
  volumeMounts:
    - name: tls
      mountPath: /etc/terway/tls
    - name: identity
      mountPath: /var/run/secrets/terway/identity
      readOnly: true
    - name: trust
      mountPath: /etc/terway/trust
      readOnly: true
{{- end }}

{{/* Secrets of the central services, where the control plane does not issue. */}}
{{- define "terway.gatewaySecret" -}}
{{- if eq .Values.certificates.source "existing" }}{{ .Values.certificates.existing.gateway }}{{ else }}{{ include "terway.name" . }}-gateway-tls{{ end }}
{{- end }}

{{- define "terway.controlplaneSecret" -}}
{{- if eq .Values.certificates.source "existing" }}{{ .Values.certificates.existing.controlplane }}{{ else }}{{ include "terway.name" . }}-controlplane-tls{{ end }}
{{- end }}

{{- define "terway.relaySecret" -}}
{{- if eq .Values.certificates.source "existing" }}{{ .Values.certificates.existing.relay }}{{ else }}{{ include "terway.name" . }}-relay-tls{{ end }}
{{- end }}

{{- define "terway.etcdSecret" -}}
{{- if eq .Values.certificates.source "existing" }}{{ .Values.certificates.existing.etcd }}{{ else }}{{ include "terway.name" . }}-etcd-tls{{ end }}
{{- end }}

{{/* Takes (list root number). */}}
{{- define "terway.ipamSecret" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.certificates.source "existing" }}{{ index $root.Values.certificates.existing.ipam (index . 1) }}{{ else }}{{ include "terway.name" $root }}-ipam-{{ index . 1 }}-tls{{ end }}
{{- end }}

{{/* What cert-manager's Certificates of services have in common. */}}
{{- define "terway.certificateSpec" -}}
duration: {{ .Values.certificates.lifetimeHours }}h
renewBefore: {{ max 1 (div (int .Values.certificates.lifetimeHours) 3) }}h
privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
issuerRef:
  name: {{ .Values.certificates.certManager.issuerName }}
  kind: {{ .Values.certificates.certManager.issuerKind }}
  group: {{ .Values.certificates.certManager.issuerGroup }}
{{- end }}
