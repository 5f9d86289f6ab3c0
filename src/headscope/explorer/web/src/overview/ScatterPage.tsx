export function ScatterPage() {
  return <p class="soft">Not built yet.</p>;
}
