export function TablePage() {
  return <p class="soft">Not built yet.</p>;
}
