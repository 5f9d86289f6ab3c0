export function SearchPage() {
  return <p class="soft">Not built yet.</p>;
}
