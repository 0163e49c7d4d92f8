package deploy_test

import (
	"net"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"example.com/billing/services/edge"
)

func TestKubernetesObjects(t *testing.T) {
	eachCluster(t, func(t *testing.T, c *cluster) {
		for _, object := range c.objects {
			if _, ok := c.namespaces[object.GetName()]; !ok && object.GetNamespace() != "billing" {
				t.Errorf("%T %s is in namespace %q", object, object.GetName(), object.GetNamespace())
			}
		}
		if level := c.namespaces["billing"].Labels["pod-security.kubernetes.io/enforce"]; level != "restricted" {
			t.Errorf("pod security is %q", level)
		}
		if len(c.deployments) != len(programs) || len(c.services) != len(programs) {
			t.Errorf("%d deployments and %d services for %d programs", len(c.deployments), len(c.services), len(programs))
		}
		for name := range programs {
			if account := c.accounts[name]; account == nil || account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
				t.Errorf("service account %s: %v", name, account)
			}
		}
	})
}

func TestKubernetesPods(t *testing.T) {
	eachCluster(t, func(t *testing.T, c *cluster) {
		for name, p := range programs {
			deployment := c.deployments[name]
			if deployment == nil {
				t.Errorf("no deployment %s", name)
				continue
			}
			checkDeployment(t, deployment, c.several(name))
			container := deployment.Spec.Template.Spec.Containers[0]
			checkProbes(t, name, container)
			checkEnvironment(t, c, name, container)
			ports := map[string]string{}
			for _, port := range container.Ports {
				ports[port.Name] = portText(uint32(port.ContainerPort))
			}
			if ports["metrics"] != metricsPort || ports[servicePort(p)] != p.port || len(ports) != 2 {
				t.Errorf("%s: container ports %v", name, ports)
			}
		}
	})
}

// servicePort is the name of the port at which the program does its work.
func servicePort(p program) string {
	if p.listen == "BILLING_HTTP_ADDR" {
		return "http"
	}
	return "grpc"
}

// several reports whether a service has more than one pod: the gateway, and an account service of which one pod leads.
func (c *cluster) several(name string) bool {
	for _, config := range c.configs {
		if name == "account" && config.Data["BILLING_EVENT_STORE"] == "kafka" {
			return true
		}
	}
	return name == "gateway"
}

func checkDeployment(t *testing.T, deployment *appsv1.Deployment, several bool) {
	t.Helper()
	name, pod := deployment.Name, deployment.Spec.Template.Spec
	selector, err := metav1.LabelSelectorAsSelector(deployment.Spec.Selector)
	if err != nil || !selector.Matches(labels.Set(deployment.Spec.Template.Labels)) {
		t.Errorf("%s: its selector does not match its own pods: %v", name, err)
	}
	if deployment.Spec.Replicas == nil || (*deployment.Spec.Replicas < 2) == several {
		t.Errorf("%s: %v replicas", name, deployment.Spec.Replicas)
	}
	if len(pod.Containers) != 1 || pod.ServiceAccountName != name || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Errorf("%s: %d containers, service account %q, token %v", name, len(pod.Containers), pod.ServiceAccountName, pod.AutomountServiceAccountToken)
	}
	// The cluster's own variables for each service would fill the environment.
	if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
		t.Errorf("%s: service links are on", name)
	}
	security := pod.SecurityContext
	if security == nil || security.RunAsNonRoot == nil || !*security.RunAsNonRoot || security.RunAsUser == nil || *security.RunAsUser != 65532 ||
		security.SeccompProfile == nil || security.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%s: pod security %v", name, security)
	}
	for _, container := range pod.Containers {
		own := container.SecurityContext
		if own == nil || own.AllowPrivilegeEscalation == nil || *own.AllowPrivilegeEscalation || own.ReadOnlyRootFilesystem == nil ||
			!*own.ReadOnlyRootFilesystem || own.Capabilities == nil || !slices.Equal(own.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: container security %v", name, own)
		}
		for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := container.Resources.Requests[resource], container.Resources.Limits[resource]
			if request.IsZero() || limit.Cmp(request) < 0 {
				t.Errorf("%s: %s requested %s, limited to %s", name, resource, request.String(), limit.String())
			}
		}
		// A service drains within 15 s, after the pause that lets clients go elsewhere.
		if container.Lifecycle == nil || container.Lifecycle.PreStop == nil || container.Lifecycle.PreStop.Sleep == nil ||
			pod.TerminationGracePeriodSeconds == nil || *pod.TerminationGracePeriodSeconds < container.Lifecycle.PreStop.Sleep.Seconds+15 {
			t.Errorf("%s: too little time to drain", name)
		}
	}
}

func checkProbes(t *testing.T, name string, container corev1.Container) {
	t.Helper()
	for kind, probe := range map[string]*corev1.Probe{
		"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe,
	} {
		if probe == nil {
			t.Errorf("%s: no %s probe", name, kind)
			continue
		}
		var port intstr.IntOrString
		switch {
		case probe.GRPC != nil:
			port = intstr.FromInt32(probe.GRPC.Port)
		case probe.HTTPGet != nil:
			port = probe.HTTPGet.Port
		case probe.TCPSocket != nil:
			port = probe.TCPSocket.Port
		}
		if got := containerPort(container, port); got != programs[name].port {
			t.Errorf("%s: the %s probe asks port %s, which is %q", name, kind, port.String(), got)
		}
	}
	if t.Failed() {
		return
	}
	if servicePort(programs[name]) == "http" {
		// /readyz says no while Kafka is away, and the requests that are still accepted then must get in.
		if container.ReadinessProbe.HTTPGet == nil || container.ReadinessProbe.HTTPGet.Path != "/healthz" ||
			container.LivenessProbe.HTTPGet == nil || container.LivenessProbe.HTTPGet.Path != "/healthz" {
			t.Errorf("%s: probes %v, %v", name, container.ReadinessProbe, container.LivenessProbe)
		}
	} else if !asks(container.ReadinessProbe, edge.Accepting) || !asks(container.LivenessProbe, edge.Alive) {
		// Accepting is NOT_SERVING while Postgres is away: a reason to send no calls, none to restart.
		t.Errorf("%s: probes %v, %v", name, container.ReadinessProbe, container.LivenessProbe)
	}
}

// asks tells whether a probe asks for the health of a name.
func asks(probe *corev1.Probe, name string) bool {
	return probe.GRPC != nil && probe.GRPC.Service != nil && *probe.GRPC.Service == name
}

// containerPort is the number of a port given by number or name, or "" if the container does not have it.
func containerPort(container corev1.Container, port intstr.IntOrString) string {
	for _, own := range container.Ports {
		if own.Name == port.StrVal && port.Type == intstr.String || own.ContainerPort == port.IntVal && port.Type == intstr.Int {
			return portText(uint32(own.ContainerPort))
		}
	}
	return ""
}

// checkEnvironment puts a container's environment together as the kubelet does, and wants secrets by reference only.
func checkEnvironment(t *testing.T, c *cluster, name string, container corev1.Container) {
	t.Helper()
	environment, secret := map[string]string{}, []string{}
	for _, from := range container.EnvFrom {
		if from.ConfigMapRef == nil || c.configs[from.ConfigMapRef.Name] == nil {
			t.Errorf("%s: takes its environment from %+v, which is no ConfigMap of ours", name, from)
			continue
		}
		for key, value := range c.configs[from.ConfigMapRef.Name].Data {
			environment[key] = value
		}
	}
	for _, variable := range container.Env {
		if variable.ValueFrom == nil {
			environment[variable.Name] = variable.Value
			continue
		}
		reference := variable.ValueFrom.SecretKeyRef
		if reference == nil || reference.Key != "dsn" || !strings.HasPrefix(reference.Name, "billing-"+name+"-db") {
			t.Errorf("%s: %s comes from %v", name, variable.Name, variable.ValueFrom)
			continue
		}
		secret = append(secret, variable.Name)
		if len(c.secrets) == 0 { // the base has none
			continue
		}
		held := c.secrets[reference.Name]
		if held == nil {
			t.Errorf("%s: no Secret %s", name, reference.Name)
		} else if err := checkDSN(string(held.Data[reference.Key]), programs[name].database); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for value := range environment {
		if strings.Contains(environment[value], "postgres://") {
			t.Errorf("%s: %s holds a DSN in the open", name, value)
		}
	}
	if programs[name].database == "" != (len(secret) == 0) {
		t.Errorf("%s: secrets %q", name, secret)
	}
	for _, wrong := range checkSettings(name, environment, secret) {
		t.Errorf("%s: %s", name, wrong)
	}
	for broker := range strings.SplitSeq(environment["BILLING_KAFKA_BROKERS"], ",") {
		if _, _, err := net.SplitHostPort(broker); err != nil && programs[name].database != "" {
			t.Errorf("%s: broker %q: %v", name, broker, err)
		}
	}
}

func TestKubernetesServices(t *testing.T) {
	eachCluster(t, func(t *testing.T, c *cluster) {
		for name, p := range programs {
			service := c.services[name]
			if service == nil {
				t.Errorf("no service %s", name)
				continue
			}
			pods := c.deployments[name].Spec.Template
			for other, deployment := range c.deployments {
				if labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(deployment.Spec.Template.Labels)) != (other == name) {
					t.Errorf("service %s and the pods of %s: the selector is wrong", name, other)
				}
			}
			ports := map[string]string{}
			for _, port := range service.Spec.Ports {
				ports[port.Name] = containerPort(pods.Spec.Containers[0], port.TargetPort)
			}
			if ports[servicePort(p)] != p.port || ports["metrics"] != metricsPort {
				t.Errorf("service %s leads to container ports %v", name, ports)
			}
			if grpc := servicePort(p) == "grpc"; (service.Spec.ClusterIP == corev1.ClusterIPNone) != grpc {
				t.Errorf("service %s has cluster IP %q", name, service.Spec.ClusterIP)
			} else if grpc && portText(uint32(service.Spec.Ports[0].Port)) != p.port {
				// A headless service does not translate ports.
				t.Errorf("service %s has port %d", name, service.Spec.Ports[0].Port)
			}
		}
	})
}

func TestKubernetesDisruptionAndNetwork(t *testing.T) {
	eachCluster(t, func(t *testing.T, c *cluster) {
		gateway := c.deployments["gateway"]
		budget := c.budgets["gateway"]
		if budget == nil || budget.Spec.MinAvailable == nil || budget.Spec.MinAvailable.IntVal >= *gateway.Spec.Replicas {
			t.Fatalf("gateway: budget %v would never let a node go", budget)
		}
		if selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector); err != nil || !selector.Matches(labels.Set(gateway.Spec.Template.Labels)) {
			t.Errorf("gateway: the budget selects other pods: %v", err)
		}
		for name, deployment := range c.deployments {
			for _, policy := range c.policies {
				selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
				if err != nil {
					t.Fatal(err)
				}
				want := policy.Name == "grpc-from-billing-only" || name == "gateway"
				if selector.Matches(labels.Set(deployment.Spec.Template.Labels)) != want {
					t.Errorf("policy %s and the pods of %s: the selector is wrong", policy.Name, name)
				}
			}
		}
	})
}

func TestKubernetesImagesAndSecrets(t *testing.T) {
	eachCluster(t, func(t *testing.T, c *cluster) {
		base := strings.HasSuffix(t.Name(), "/base")
		if base != (len(c.secrets) == 0) {
			t.Errorf("%d secrets", len(c.secrets))
		}
		for name, deployment := range c.deployments {
			image := deployment.Spec.Template.Spec.Containers[0].Image
			if base && image != "billing/"+name {
				t.Errorf("image %s: the base gives the name that overlays replace", image)
			}
			if !base && (!strings.Contains(image, "/billing/"+name+":") || strings.HasSuffix(image, ":latest")) {
				t.Errorf("image %s has no fixed tag", image)
			}
		}
	})
}
