package deploy_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// newDecoder decodes the kinds that we deploy into their Go types and refuses fields that the types do not have.
func newDecoder() (runtime.Decoder, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, policyv1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true}), nil
}

// A cluster is what kubectl apply would send.
type cluster struct {
	objects     []metav1.Object
	deployments map[string]*appsv1.Deployment
	services    map[string]*corev1.Service
	configs     map[string]*corev1.ConfigMap
	secrets     map[string]*corev1.Secret
	accounts    map[string]*corev1.ServiceAccount
	budgets     map[string]*policyv1.PodDisruptionBudget
	policies    map[string]*networkingv1.NetworkPolicy
	namespaces  map[string]*corev1.Namespace
}

// loadCluster builds a kustomization as kubectl does and decodes each object.
func loadCluster(path string, files filesys.FileSystem) (*cluster, error) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, path)
	if err != nil {
		return nil, err
	}
	decoder, err := newDecoder()
	if err != nil {
		return nil, err
	}
	c := &cluster{
		deployments: map[string]*appsv1.Deployment{}, services: map[string]*corev1.Service{}, configs: map[string]*corev1.ConfigMap{},
		secrets: map[string]*corev1.Secret{}, accounts: map[string]*corev1.ServiceAccount{}, budgets: map[string]*policyv1.PodDisruptionBudget{},
		policies: map[string]*networkingv1.NetworkPolicy{}, namespaces: map[string]*corev1.Namespace{},
	}
	for _, resource := range built.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			return nil, err
		}
		decoded, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", resource.CurId(), err)
		}
		object, err := meta.Accessor(decoded)
		if err != nil {
			return nil, err
		}
		c.objects = append(c.objects, object)
		switch o := decoded.(type) {
		case *appsv1.Deployment:
			c.deployments[o.Name] = o
		case *corev1.Service:
			c.services[o.Name] = o
		case *corev1.ConfigMap:
			c.configs[o.Name] = o
		case *corev1.Secret:
			c.secrets[o.Name] = o
		case *corev1.ServiceAccount:
			c.accounts[o.Name] = o
		case *policyv1.PodDisruptionBudget:
			c.budgets[o.Name] = o
		case *networkingv1.NetworkPolicy:
			c.policies[o.Name] = o
		case *corev1.Namespace:
			c.namespaces[o.Name] = o
		default:
			return nil, fmt.Errorf("%T: no test looks at this kind", decoded)
		}
	}
	return c, nil
}

// overlays are the kustomizations that the tests build.
var overlays = []string{"base", "overlays/example", "overlays/kafka-store"}

func eachCluster(t *testing.T, check func(*testing.T, *cluster)) {
	t.Helper()
	for _, overlay := range overlays {
		t.Run(overlay, func(t *testing.T) {
			c, err := loadCluster(filepath.Join(root, "deploy", "kubernetes", overlay), filesys.MakeFsOnDisk())
			if err != nil {
				t.Fatal(err)
			}
			check(t, c)
		})
	}
}

func TestKubernetesRefusesMistakes(t *testing.T) {
	const kustomization = "resources: [object.yaml]\n"
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{name: grpc, port: 9101, targetPort: grpc}]}\n"
	for _, c := range []struct{ name, kustomization, object, want string }{
		{"nothing wrong", kustomization, service, ""},
		{"unknown field", kustomization, strings.Replace(service, "targetPort", "targetport", 1), `unknown field "spec.ports[0].targetport"`},
		{"wrong type", kustomization, strings.Replace(service, "9101", "high", 1), "cannot unmarshal"},
		{"unknown kind", kustomization, strings.Replace(service, "Service", "Servise", 1), "no kind"},
		{"old version", kustomization, strings.Replace(service, "v1", "v1beta1", 1), "no kind"},
		{"unknown field of kustomize", "resource: [object.yaml]\n", service, `unknown field "resource"`},
		{"a file that is not there", "resources: [objects.yaml]\n", service, "objects.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := filesys.MakeFsInMemory()
			for name, content := range map[string]string{"/k/kustomization.yaml": c.kustomization, "/k/object.yaml": c.object} {
				if err := files.WriteFile(name, []byte(content)); err != nil {
					t.Fatal(err)
				}
			}
			_, err := loadCluster("/k", files)
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}
