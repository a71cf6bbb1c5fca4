// Calls of the public API. A refused token opens the dialog, and the call is sent again.

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export async function call(path, options = {}) {
  const response = await fetch(path, options);
  if (response.status === 401) {
    await login();
    return call(path, options);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem(response.status, problem.detail ?? `The service answered ${response.status}.`);
}

export const getJson = async (path) => (await call(path)).json();

let asking = null;

/** Ask for the token until the service accepts it; calls that wait share one dialog. */
function login() {
  asking ??= new Promise((resolve) => {
    const [dialog, form, token, error] = ['login', 'login-form', 'token', 'login-error'].map((id) => document.getElementById(id));
    const submit = async (event) => {
      event.preventDefault();
      const answer = await fetch('/api/session', { method: 'POST', headers: { Authorization: `Bearer ${token.value}` } });
      if (!answer.ok) {
        error.textContent = 'This is not the token of the service.';
        return;
      }
      form.removeEventListener('submit', submit);
      token.value = error.textContent = '';
      dialog.close();
      asking = null;
      resolve();
    };
    form.addEventListener('submit', submit);
    dialog.addEventListener('cancel', (event) => event.preventDefault());
    dialog.showModal();
  });
  return asking;
}
