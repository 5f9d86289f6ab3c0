export function LivePage() {
  return <p class="soft">Not built yet.</p>;
}
