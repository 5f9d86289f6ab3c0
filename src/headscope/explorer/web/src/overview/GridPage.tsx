export function GridPage() {
  return <p class="soft">Not built yet.</p>;
}
