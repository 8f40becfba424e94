import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.io.ByteArrayInputStream;

/** The JDK's own client, as it comes: it offers HTTP/2 with its first request. */
class Client {
    static HttpClient client;
    static String url;

    static void post(String path, String body, boolean chunked) throws Exception {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        HttpRequest request = HttpRequest.newBuilder(URI.create(url + path))
            .header("Content-Type", "application/json")
            .POST(chunked
                ? HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes))
                : HttpRequest.BodyPublishers.ofByteArray(bytes))
            .build();
        HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
    }

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        HttpClient.Builder builder = HttpClient.newBuilder();
        if (arguments[1].equals("plain")) builder.version(HttpClient.Version.HTTP_1_1);
        client = builder.build();
        boolean chunked = arguments[1].equals("chunked");
        for (int i = 2; i < arguments.length; i += 2) {
            post(arguments[i], arguments[i + 1], chunked);
        }
    }
}
